"""What the student is trained to do."""
