"""What a run or a race found, as one page to read and as Markdown for a pull request. Imports no torch."""
