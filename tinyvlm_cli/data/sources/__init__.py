"""Readers of the files of a training set: JSON lists and lines, zip and tar archives, parquet and webdataset shards.

Nothing is unpacked. Readers yield records as dictionaries, and the places of encoded images within files.
"""
