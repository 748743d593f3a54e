"""The judges' room: what a finished (or half-finished) student is measured by, and the command that asks for it."""
