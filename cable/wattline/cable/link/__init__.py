"""What cable and socket say to each other: the way there, the offer, the stream, the receipt."""
