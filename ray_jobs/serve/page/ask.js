// Shared by both pages: elements, and requests with the user's key.

export const byId = (id) => document.getElementById(id);

/** Return a new element. Text is put into it as text, never as HTML. */
export function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

/** Return the answer to a request, or throw an Error with one sentence. The form for a key is shown if one is wanted. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("the service does not answer; try again in a moment");
  }
  byId("door").hidden = response.status !== 401;
  const answer = await response.json().catch(() => ({ error: `the service answered ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

/** Keep the key that the user gives, as long as this window is open, and call `then`. */
export function askForKey(then) {
  byId("door").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("key", byId("key").value.trim());
    then();
  });
}
