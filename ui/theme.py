"""Dark by default, as reading rooms are, with a switch that the browser remembers. Gradio's own theme follows the class `dark` of the page's body."""

HEAD = """<script>
(() => {
    const KEPT = 'emrrg-theme';
    let dark = true;
    try { dark = localStorage.getItem(KEPT) !== 'light'; } catch { /* no storage: dark */ }
    function show() {
        document.body?.classList.toggle('dark', dark);
        document.documentElement.style.colorScheme = dark ? 'dark' : 'light';
        for (const button of document.querySelectorAll('[data-theme]')) button.setAttribute('aria-pressed', dark);
    }
    document.addEventListener('click', (event) => {
        if (!event.target.closest?.('[data-theme]')) return;
        dark = !dark;
        try { localStorage.setItem(KEPT, dark ? 'dark' : 'light'); } catch { /* for this page only */ }
        show();
    });
    new MutationObserver(() => {
        if (document.body && document.body.classList.contains('dark') !== dark) show();
    }).observe(document.documentElement, {subtree: true, childList: true, attributes: true, attributeFilter: ['class']});
    document.addEventListener('DOMContentLoaded', show);
})();
</script>"""
