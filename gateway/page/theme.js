// Before anything is painted: the theme that was chosen here, if one was. The system's is CSS's own business.
(() => {
  try {
    const chosen = localStorage.getItem("theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // storage may be forbidden
  }
})();
