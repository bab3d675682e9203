"""Streamlit pages: thin, they call use cases and draw."""
