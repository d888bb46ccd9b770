"""The steps from one release's tables to the next one's, for SQLite and PostgreSQL.

`scripts/migration.py` writes the newest revision anew from the tables that features declare. What a revision does to
data, beyond what the tables say, stands in `steps.py`.
"""
