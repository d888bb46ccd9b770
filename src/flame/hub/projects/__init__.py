"""Projects, who belongs to them, and which hospitals are asked."""
