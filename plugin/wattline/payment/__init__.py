"""Turning money into credit on a session, and paying: nothing else knows the method."""
