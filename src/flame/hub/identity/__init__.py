"""Who somebody is: realms, users, roles, clients, sessions, tokens, keys of people."""
