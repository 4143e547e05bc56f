"""What a judge is made of: Phoenix's evaluators behind our own calls. Start at judge.py; nothing else needs this."""
