"""Loaders of public data sets in their original formats: files in, a spec and canonical rows out."""
