"""What readers see of a finished study: README's generated blocks, pages of responses, the site, the data's archive.

No notebook imports it, so nothing here makes a stage run again.
"""
