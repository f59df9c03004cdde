"""The shell router: runs trees of agents over SGLang workers and answers with OpenAI's API."""
