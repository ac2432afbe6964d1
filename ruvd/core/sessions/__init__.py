"""Sessions: what they are, who has the turn in one, and how they change."""
