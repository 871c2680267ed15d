"""Downloads for `tinyvlm data get`: fetching, verifying, unpacking and recording files.

All addresses are in conf/, and no downloaded file is ever executed.
"""
