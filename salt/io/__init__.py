"""Reading and writing: videos, prompt files, files written atomically, downloads from the model hub."""
