"""The demonstration: a shop, its traffic, a mistake, and the way back."""
