"""From records to what is read: leaderboards, verdicts, published numbers beside measured ones, pages."""
