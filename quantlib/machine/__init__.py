"""This machine's CPU, and the sessions that run models on it."""
