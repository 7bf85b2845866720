"""Energy meters behind one Protocol."""
