"""Find the sentence that is nearest in meaning to a question, with embeddings and no other package.

OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=mp_live_… python examples/search.py
"""

from openai import OpenAI

SENTENCES = [
    "The invoice is due at the end of the month.",
    "Our office is closed on public holidays.",
    "You can reset your password on the sign-in page.",
]
QUESTION = "I can't log in any more"

client = OpenAI()
answer = client.embeddings.create(model="all-minilm-l6-v2", input=[QUESTION, *SENTENCES])
question, *vectors = [row.embedding for row in answer.data]
# The vectors have length one, so the sum of products is the cosine of the angle between them.
scores = [sum(a * b for a, b in zip(question, vector, strict=True)) for vector in vectors]
for score, sentence in sorted(zip(scores, SENTENCES, strict=True), reverse=True):
    print(f"{score:.2f}  {sentence}")
