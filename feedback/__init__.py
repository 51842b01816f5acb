"""What comes back from people: slates as they were shown, what came of them, and the next data set."""
