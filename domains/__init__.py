"""What a domain is and knows: its spec, data, histories, splits, registry. No torch and no framework of the outer layers."""
