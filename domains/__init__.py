"""What a domain is and knows: spec, data, histories, splits, registry. No torch, no framework of the outer layers."""
