"""OpenAI's Responses dialect: its requests as chats, and a chat's answer as its events and its response object."""
