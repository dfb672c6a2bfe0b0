"""How much one thing tells of another: information in bits, similarity of representations, and their nulls."""
