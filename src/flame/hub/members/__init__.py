"""Members and their keys: chains of rotations, revocations, and what members say of each other. Carried, not judged."""
