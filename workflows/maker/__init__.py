"""The draughtsman's desk: workflows are described here in a few lines each, and drawn as JSON and as pictures."""
