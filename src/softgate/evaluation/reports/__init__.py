"""What an evaluation writes for people: pages, tables and sentences."""
