// What the compiler does not see in client/src; run by scripts/lint. In a folder of its own, so that who builds the client does not need it.
import tseslint from 'typescript-eslint'

export default tseslint.config(tseslint.configs.recommended, {
  languageOptions: { parserOptions: { project: '../tsconfig.json' } },
  linterOptions: { reportUnusedDisableDirectives: 'error' },
  rules: {
    eqeqeq: 'error',
    'no-constant-condition': ['error', { checkLoops: false }],
    '@typescript-eslint/await-thenable': 'error',
    '@typescript-eslint/no-base-to-string': 'error',
    '@typescript-eslint/no-floating-promises': 'error',
    '@typescript-eslint/no-for-in-array': 'error',
    '@typescript-eslint/no-misused-promises': 'error',
    '@typescript-eslint/no-unsafe-unary-minus': 'error',
    '@typescript-eslint/restrict-plus-operands': 'error',
    '@typescript-eslint/switch-exhaustiveness-check': 'error',
  },
})
