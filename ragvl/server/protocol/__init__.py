"""What requests and answers look like, and nothing else: no route and no model is known here."""
