"""Raw files in, validated events out."""
