"""Phoenix, and nothing else of the outside world: its server, the spans that go to it, what it knows of evaluators.

The files here take and give plain records and are the only ones that import the Phoenix client.
"""
