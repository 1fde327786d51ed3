"""The endpoint that clients of OpenAI's chat completions API talk to."""
