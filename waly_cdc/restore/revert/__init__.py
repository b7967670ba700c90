"""Undoing transactions: what each row has to be again, as SQL against today's schema."""
