"""Recipes, and networks fitted by them."""
