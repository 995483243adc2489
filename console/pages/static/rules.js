// Names the editor for screen readers, once it is there.
const named = new MutationObserver(() => {
  for (const found of document.querySelectorAll(".rules-editor .cm-content:not([aria-label])"))
    found.setAttribute("aria-label", "Your copy of the rules file, TOML");
});
named.observe(document.documentElement, { childList: true, subtree: true });
