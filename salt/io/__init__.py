"""Reading and writing: videos, prompt files, atomic file writing, downloads from the Hugging Face Hub."""
