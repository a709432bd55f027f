"""Where checkpoints come from: read, fine-tuned, distilled. The only room that needs torch, with export."""
