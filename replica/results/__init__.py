"""What a finished network is worth: error rates, pictures."""
