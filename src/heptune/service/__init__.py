"""Many tuned models on one base, answering at the same time; spoken to over HTTP as OpenAI's interface is."""
