"""HTTP handlers: OpenAI's API (`openai`), run records (`runs`) and health (`health`)."""
