"""What is compared of teacher and student beside their predictions."""
