"""What comes from the other side: numbers within their ranges, text that cannot do anything to whoever reads it."""
