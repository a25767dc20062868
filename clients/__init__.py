"""What runs at a merchant."""
