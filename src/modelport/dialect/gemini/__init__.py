"""Google's Gemini dialect: chats as its requests, and its answers as a chat's chunks.

Source: Gemini API reference (generateContent, streamGenerateContent, batchEmbedContents; v1beta), as of 2026-11.
"""
