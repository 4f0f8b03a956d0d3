"""What runs in the rivals' own environments: each file is the least that its server's documentation asks for."""
