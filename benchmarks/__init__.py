"""This project's steered generation against what one would use instead, measured in one run on the same trials."""
