"""The only package that joins the others: use cases, flows, command line."""
