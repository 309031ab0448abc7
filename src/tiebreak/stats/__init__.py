"""Pure numpy statistics of preferences; knows no record and no file."""
